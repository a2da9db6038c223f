const cds = require("@sap/cds");

// Numbers tickets as they are opened, as people read them to each other.
module.exports = class Service extends cds.ApplicationService {
  init() {
    const { Tickets } = this.entities;
    let last = 7000;
    this.before("CREATE", Tickets, (request) => { request.data.number = ++last; });
    return super.init();
  }
};
