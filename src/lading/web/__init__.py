"""The way in over HTTP: the supervisor, its sockets and workers, and what they answer."""
