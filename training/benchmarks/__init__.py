"""How fast it is, beside its floor and its peers."""
