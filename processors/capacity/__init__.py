"""How much of everything so many calls need: figures from a profile in, a plan out (docs/capacity.md)."""
