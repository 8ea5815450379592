"""The page on which a person compares answers: a server on this computer, its pages, and what runs it.

Import from the modules; nothing is re-exported here.
"""
