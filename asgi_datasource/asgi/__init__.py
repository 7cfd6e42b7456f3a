"""What happens to a request: the middleware, the response that it holds back, and the answers that it gives itself."""
