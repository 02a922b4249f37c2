"""A session: the engine it runs on, the course of a job, batches."""
