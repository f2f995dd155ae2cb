"""What is bought and what is trained: hardware, models, plans, phases."""
