"""A small ERP for the demo agent: orders, stock, returns and tickets. It stands alone, as a customer's system would."""
