"""What the platform needs besides code: agents, settings of its services, and the demo ERP."""
