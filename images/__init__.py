"""Builds, tags, pushes and pins the images; the locks of what is in them."""
