"""Front: the front door. What users call, and which cluster it runs on."""
