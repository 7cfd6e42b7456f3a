"""The Django application: it has the command `manage.py datasource`."""

from __future__ import annotations

from django.apps import AppConfig


class DataSourceConfig(AppConfig):
    """The Django application `asgi_datasource.django`."""

    name = "asgi_datasource.django"
    label = "datasource"
    verbose_name = "asgi-datasource"
