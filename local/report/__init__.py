"""The report of a run: collected from the run's folder into one value, and rendered from that value alone.

``collect`` reads files and judges nothing; ``model`` says what there is; the renderers know no file. What was not
measured is part of the value, so that no renderer can pass it over.
"""
