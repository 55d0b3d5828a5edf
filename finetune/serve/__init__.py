"""The HTTP service: trained runs answer requests on this machine.

`served_runs.py` finds and loads runs. `doorman.py` reads a request within limits,
`asked_samples.py` checks what it asks, `request_queue.py` puts requests together into batches for
the one thread that runs networks. `routes.py` answers; `openapi_page.py` describes; `counters.py`
counts. `server.py` listens and reacts to signals.
"""
