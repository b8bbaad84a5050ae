DROP INDEX join_tokens_expiry;
DROP INDEX revoked_jwts_expiry;
DROP INDEX refresh_tokens_expiry;
