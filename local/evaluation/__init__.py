"""Before and after: tasks and their metrics, the endpoint that is asked, statistics, and what is written down.

Import from the modules; nothing is re-exported here.
"""
