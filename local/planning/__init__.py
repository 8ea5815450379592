"""Before anything is rented: the data, the spec, what it needs on a card, what it costs."""
