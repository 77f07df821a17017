"""How steps call functions otherwise than one by one, and what the calls share."""
