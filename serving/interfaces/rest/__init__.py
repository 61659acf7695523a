"""The reading API ``/v1``, health checks and the page over HTTP: a thin adapter, see `serving.interfaces.rest.app`."""
