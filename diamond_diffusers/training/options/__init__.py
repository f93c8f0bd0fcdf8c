"""The options of the trainer: records, the command line that fills them, and checks. Imports nothing heavy."""
