"""Django: the application for `asgi.py`, a middleware for errors, and `manage.py datasource`.

INSTALLED_APPS = ["asgi_datasource.django", ...]
MIDDLEWARE = ["asgi_datasource.django.DataErrorMiddleware", ...]
DATASOURCE = BASE_DIR / "datasource.yaml"

application = get_asgi_application()                  # asgi.py
"""

from .application import get_asgi_application
from .middleware import DataErrorMiddleware

__all__ = ["DataErrorMiddleware", "get_asgi_application"]
