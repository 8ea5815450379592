"""What is rented or stored elsewhere: providers, offers, the budget, the store."""
