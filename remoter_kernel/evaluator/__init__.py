"""THERE: the far machine's side; ships as one zipapp, needs only what ipykernel needs."""
