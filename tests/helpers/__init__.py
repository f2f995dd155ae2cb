"""What tests of several rooms share and no fixture can give."""
