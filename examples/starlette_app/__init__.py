"""An operations desk for sixteen airlines: the example application of asgi-datasource."""
