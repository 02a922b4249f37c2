"""Budgets of a session: prices of jobs and their reservations."""
