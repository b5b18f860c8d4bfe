"""A third-party plugin for gotr1, with one judge."""
