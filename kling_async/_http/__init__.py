"""HTTP: the aiohttp transport, retries of reads, timeouts and pagination."""
