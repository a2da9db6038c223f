"""Service levels: what tenants were promised, what the events say of it, and alerts where a budget burns."""
