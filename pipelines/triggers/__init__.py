"""What starts a training or a release besides a person and the clock: events from outside, told to GitHub.

``receiver`` takes webhooks of MLflow and of Prometheus' Alertmanager, ``watcher`` looks how much readers have signed,
``outbox`` keeps what is to be told until it was, ``sender`` tells it: ``POST /repos/…/dispatches``, which starts the
workflows that name the event under ``repository_dispatch``.

It knows the server by its reading API alone.
"""
