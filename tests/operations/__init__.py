"""Every operation on the way has a rule, or is named: networks of one operation each, and what must hold for them."""
