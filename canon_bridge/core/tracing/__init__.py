"""The data flow of a model, and new forwards for the containers in which operations become modules."""
