"""motet: from a checkpoint to a reasoning model by one recipe and one command. Importing it imports nothing heavy."""

__version__ = "0.1.0"
