"""The kinds of task: what is asked, what is expected, how an answer is scored. One module per kind."""
