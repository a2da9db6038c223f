"""What calls leave in other systems: workflows, call logs, and customers' health."""
