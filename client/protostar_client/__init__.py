"""Put questions to Protostar's workers and read their answers, from any Python service."""
