"""The room of the workbench: its screens read records, post messages and never run the model."""
