DROP TABLE sent_outputs;
