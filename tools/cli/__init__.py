"""The commands: ``export``, ``build`` and ``validate``, all of one shape."""
