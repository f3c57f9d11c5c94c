"""Fast matrix products, memory that is kept, captured steps."""
