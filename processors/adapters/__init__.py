"""Adapters: how other systems are asked, as YAML files; see docs/crm.md."""
