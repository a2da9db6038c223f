-- Erased calls: which stores have erased, and their certificates.

ALTER TABLE controls ADD COLUMN IF NOT EXISTS document String COMMENT 'Of erased: what was erased, as JSON; the certificate is signed.' AFTER reason;
