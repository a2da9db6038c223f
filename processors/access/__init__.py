"""Who may do what: roles, and the keys and tokens that give them."""
