"""Networks, their starting weights and their cut."""
