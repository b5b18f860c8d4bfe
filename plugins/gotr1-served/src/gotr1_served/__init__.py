"""Judges and a planner of gotr1 behind a server with OpenAI's chat interface."""
