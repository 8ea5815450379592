"""The command line of cloudft: it parses, calls one function and prints."""

__version__ = "0.1.0"
