"""Real parts that tests share: an S3 server, Ceph, a Docker engine, the images and Compose; started once a session.

``tests.services.fixtures`` is the pytest plugin with all of them; pyproject.toml loads it.
"""
