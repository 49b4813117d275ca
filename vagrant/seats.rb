# What the Vagrantfile asks: how many machines, on which port each, with which
# token, from which box; and the words for a person when something is in the way.
#
# A seat's port and token are kept in .vagrant/lab, so that its address stays the
# same from one `vagrant up` to the next.

require "fileutils"
require "json"
require "net/http"
require "securerandom"
require "socket"
require "vagrant"

class Lab
  # One sentence of what is wrong, one of what to do.
  class Wrong < Vagrant::Errors::VagrantError
    def initialize(what, todo)
      @words = "#{what}\n  → #{todo}"
      super()
    end

    def error_message
      @words
    end
  end

  MACHINES = %i[virtualbox libvirt vmware_desktop parallels].freeze
  IMAGE = "docker-deep-dive".freeze
  # Vagrant reads its Vagrantfile many times in one run, and brings up seats side by side.
  LOCK = Mutex.new
  TOKENS = Hash.new { |all, name| all[name] = SecureRandom.hex(24) }

  attr_reader :root, :cpus, :memory, :port, :host_ip, :share

  def initialize(env, root)
    @env, @root = env, root
    @cpus = number("LAB_CPUS", 2, 1..256)
    @memory = number("LAB_MEMORY", 2048, 768..1_048_576)
    @port = number("LAB_PORT", 8888, 1024..65_000)
    @host_ip = env.fetch("LAB_HOST_IP", "127.0.0.1")
    @share = env.fetch("LAB_SHARE", "virtiofs")
    @asked = number("LAB_SEATS", 0, 0..200)
  end

  def emulated?
    @env["LAB_EMULATE"] == "1"
  end

  def room?
    !seats.first.alone?
  end

  # The seats asked for, or else those that are there, so that `vagrant destroy` knows them.
  def seats
    @seats ||= begin
      count = @asked.zero? ? existing : @asked
      count.zero? ? [Seat.new(self, 0)] : (1..count).map { |n| Seat.new(self, n) }
    end
  end

  def state
    File.join(@env.fetch("VAGRANT_DOTFILE_PATH", File.join(@root, ".vagrant")), "lab")
  end

  # ---- the box ----

  # LAB_BOX, a file or an address or a name, or the file that `lab box` made if it lies here, or `name` from the registry.
  def use_box(override, provider, name = nil)
    override.vm.box = name if name
    asked = @env["LAB_BOX"].to_s
    file = asked.empty? ? box_file(provider) : File.expand_path(asked, Dir.pwd)
    if asked.start_with?("http://", "https://")
      override.vm.box, override.vm.box_url = File.basename(asked, ".box"), asked
    elsif file && File.file?(file)
      use_file(override, file)
    elsif asked.end_with?(".box")
      raise Wrong.new("LAB_BOX: there is no file #{file}", "`vagrant/lab box` makes it, on a Linux machine")
    elsif !asked.empty?
      override.vm.box = asked
    end
  end

  def box_file(provider)
    arch = RbConfig::CONFIG["host_cpu"] =~ /arm64|aarch64/ ? "arm64" : "amd64"
    File.join(@root, "docker-deep-dive-#{provider}-#{arch}.box")
  end

  # Named by its checksum: another file is another box, and Vagrant doesn't take an old one for it.
  def use_file(override, file)
    sum = File.file?("#{file}.sha256") ? File.read("#{file}.sha256").split.first.to_s : ""
    override.vm.box = "docker-deep-dive-#{sum.empty? ? File.mtime(file).to_i : sum[0, 12]}"
    override.vm.box_url = "file://#{file}"
    override.vm.box_check_update = false
    return if sum.empty?

    override.vm.box_download_checksum_type = "sha256"
    override.vm.box_download_checksum = sum
  end

  # Docker's own words go to the screen: Vagrant looks in them for an image's number, and not every Docker says it.
  def build_image(vm)
    LOCK.synchronize do
      next if @built

      vm.ui.info "building the image #{IMAGE}: some minutes the first time"
      @built = system("docker", "build", "-t", IMAGE, "-f", File.join(@root, "vagrant/seat/Dockerfile"), @root)
      @built or raise Wrong.new("Docker could not build #{IMAGE}", "its words are above; `docker info` says whether it runs")
    end
  end

  def share_options(excluded)
    case @share
    when "virtiofs" then {}
    when "9p" then { accessmode: "passthrough" }
    when "nfs" then { nfs_udp: false, nfs_version: 4 }
    when "rsync" then { rsync__exclude: excluded }
    else raise Wrong.new("LAB_SHARE=#{@share} is no way to share a folder", "virtiofs, 9p, nfs or rsync")
    end
  end

  # ---- what may be in the way ----

  # Before Vagrant does anything: what a room's seats would all say, one after the other.
  def check_up(argv)
    return unless argv.first == "up"

    asked = argv.join(" ")[/--provider[ =]([\w-]+)/, 1] || @env["VAGRANT_DEFAULT_PROVIDER"].to_s
    # A file of one's own may have named one, and a seat that is there has one.
    unknown = asked.empty? && (File.exist?(File.join(@root, "Vagrantfile.local")) || Dir.glob("#{state}/../machines/*/*/id").any?)
    check_memory unless unknown || !(asked.empty? || here?(asked))
    return if unknown || !asked.empty?

    all = Vagrant.plugin("2").manager.providers
    return if MACHINES.any? { |name| all[name] && all[name][0].usable?(false) }

    raise Wrong.new("Vagrant finds nothing here that runs virtual machines",
                    "vagrant up --provider=docker, where Docker is; or install VirtualBox; or, on Linux, libvirt and " \
                    "`vagrant plugin install vagrant-libvirt`; or VMware or Parallels with their Vagrant plugins")
  end

  def check_host(provider)
    check_virtualisation(provider) if MACHINES.include?(provider.to_sym) && !emulated?
  end

  def check_virtualisation(provider)
    missing =
      case RbConfig::CONFIG["host_os"]
      when /linux/ then linux_lacks(provider)
      when /mswin|mingw|cygwin/ then windows_lacks
      end
    return unless missing

    also = provider == :libvirt ? "; or, ten times slower, LAB_EMULATE=1 vagrant up" : ""
    raise Wrong.new("this computer's virtualisation is off: #{missing}",
                    "switch it on in its firmware setup (Intel VT-x, AMD-V or SVM); " \
                    "if it is itself a virtual machine, allow nested virtualisation in its host#{also}")
  end

  def linux_lacks(provider)
    return "/dev/kvm is not there" if provider == :libvirt && !File.exist?("/dev/kvm")

    # arm64 has no such line, and VirtualBox itself says it then.
    flags = File.foreach("/proc/cpuinfo").find { |line| line.start_with?("flags") }
    "its CPU shows neither vmx nor svm in /proc/cpuinfo" if flags && flags !~ /\b(vmx|svm)\b/
  end

  def windows_lacks
    ask = "(Get-CimInstance Win32_Processor).VirtualizationFirmwareEnabled -contains $true -or " \
          "(Get-CimInstance Win32_ComputerSystem).HypervisorPresent"
    "Windows says so" if `powershell -NoProfile -Command "#{ask}"`.strip == "False"
  rescue SystemCallError
    nil
  end

  def check_memory
    return unless File.readable?("/proc/meminfo")

    has = File.read("/proc/meminfo")[/MemTotal: +(\d+)/, 1].to_i / 1024
    wants = memory * seats.size
    return if wants < has

    raise Wrong.new("#{seats.size} machine(s) of #{memory} MiB want #{wants} MiB, and this computer has #{has}",
                    "fewer seats, or LAB_MEMORY=#{[768, (has * 3 / 4) / seats.size].max}")
  end

  # Whether a provider's seats run on this computer, and not in a cloud.
  def here?(provider)
    [*MACHINES, :docker].include?(provider.to_sym)
  end

  # ---- the end of `vagrant up` ----

  def announce(seat, vm)
    ui = vm.ui
    unless here?(vm.provider_name)
      # A cloud forwards no port, and root's token is nothing for the open internet.
      ui.success "the lab is up. Leave this running, and open the address below it:\n\n" \
                 "    vagrant ssh #{seat.name} -- -N -L #{seat.port}:127.0.0.1:8888\n    #{seat.url("127.0.0.1")}\n"
      return
    end
    ui.info "waiting for JupyterLab on port #{seat.port}"
    ask = vm.provider_name == :docker ? "docker-logs #{seat.name}" : "ssh #{seat.name} -c 'sudo journalctl -u docker-deep-dive'"
    raise Wrong.new("JupyterLab does not answer on http://127.0.0.1:#{seat.port}", "vagrant #{ask}") unless seat.answers_within(emulated? ? 1200 : 300)

    if room?
      at_exit { puts "\nThe seats, also in #{list}:\n#{File.read(list)}" } unless File.exist?(list) && @listed
      @listed = true
      write_list
    else
      ui.success "the lab is up. Open this:\n\n    #{seat.url}\n"
    end
  end

  def list
    File.join(state, "seats.txt")
  end

  def write_list
    lines = seats.select(&:kept?).map { |seat| "#{seat.name}  #{seat.url}\n" }
    lines.empty? ? FileUtils.rm_f(list) : File.write(list, lines.join, perm: 0o600)
  end

  def first_chapter
    name = Dir.glob("[0-9]*.ipynb", base: File.join(@root, "notebooks")).min
    name ? "/tree/#{name}" : ""
  end

  def address
    return @env["LAB_ADDRESS"] if @env["LAB_ADDRESS"]
    return @host_ip unless @host_ip == "0.0.0.0"

    (Socket.ip_address_list.find { |a| a.ipv4? && !a.ipv4_loopback? } || Addrinfo.ip("127.0.0.1")).ip_address
  end

  private

  def existing
    Dir.glob("#{state}/seat-*.json").map { |file| file[/seat-(\d+)/, 1].to_i }.max || 0
  end

  def number(name, default, range)
    value = @env.fetch(name, default).to_s
    return value.to_i if value =~ /\A\d+\z/ && range.cover?(value.to_i)

    raise Wrong.new("#{name}=#{value} can't be used", "a number from #{range.first} to #{range.last}")
  end
end

# One machine of the lab, and how its participant reaches it.
class Lab::Seat
  attr_reader :token, :port

  def initialize(lab, number)
    @lab, @number = lab, number
    record = kept? ? JSON.parse(File.read(file)) : {}
    @token = record["token"] || Lab::TOKENS[name]
    @port = record["port"] || lab.port + [number - 1, 0].max
  end

  # Before its machine starts: see that the port is free, or take the next one that is.
  def settle(vm)
    return if kept? && vm.state.id == :running

    Lab::LOCK.synchronize do
      wanted = @port
      @port += 1 while @port < 65_535 && (others.include?(@port) || listening?)
      vm.ui.warn "port #{wanted} is taken on this computer, so it will be #{@port}" if @port != wanted
      vm.config.vm.networks.each { |_, options| options[:host] = @port if options[:id] == "lab" }
      FileUtils.mkdir_p(@lab.state)
      File.write(file, JSON.generate("token" => @token, "port" => @port), perm: 0o600)
    end
  end

  def alone?
    @number.zero?
  end

  def name
    alone? ? "default" : format("seat-%02d", @number)
  end

  def hostname
    alone? ? "lab" : name
  end

  def url(address = @lab.address)
    "http://#{address}:#{port}/lab#{@lab.first_chapter}?token=#{token}"
  end

  def kept?
    File.exist?(file)
  end

  def forget
    FileUtils.rm_f(file)
    @lab.write_list if File.exist?(@lab.list)
  end

  def answers?
    request = Net::HTTP::Get.new("/api/status", "Authorization" => "token #{token}")
    Net::HTTP.start("127.0.0.1", port, nil, open_timeout: 5, read_timeout: 20) do |http|
      http.request(request).code == "200"
    end
  rescue SystemCallError, IOError, Timeout::Error, Net::HTTPBadResponse
    false
  end

  def answers_within(seconds)
    deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
    until answers?
      return false if Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline

      sleep 1
    end
    true
  end

  private

  def file
    File.join(@lab.state, "#{name}.json")
  end

  # The ports that other seats have, or will want.
  def others
    @lab.seats.reject { |seat| seat.name == name }.map(&:port)
  end

  # Windows lets two programs listen on one port, so somebody who answers counts too.
  def listening?
    TCPServer.new(@lab.host_ip, @port).close
    TCPSocket.new("127.0.0.1", @port).close
    true
  rescue Errno::EADDRINUSE, Errno::EACCES
    true
  rescue SystemCallError
    false
  end
end
