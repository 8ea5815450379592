"""Everything that runs on the rented machine. Imports none of the other packages."""
