-- What has expired is removed from time to time.
CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expires_at);
CREATE INDEX revoked_jwts_expiry ON revoked_jwts (expires_at);
CREATE INDEX join_tokens_expiry ON join_tokens (expires_at);
