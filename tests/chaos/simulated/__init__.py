"""A world in one thread and without time: the product's own code between a simulated clock, database, disk and link."""
