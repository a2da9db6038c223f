const cds = require("@sap/cds");

// For this machine alone.
cds.once("bootstrap", (app) => {
  const listen = app.listen.bind(app);
  app.listen = (port) => listen(port, "127.0.0.1");
});

module.exports = cds.server;
