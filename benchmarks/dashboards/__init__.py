"""The two dashboards: their panels as data, the JSON that Grafana reads, and pictures of them."""
