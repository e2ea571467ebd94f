"""The guard inside other libraries. Each module needs its library; nothing here is imported unless asked for."""
